"""What only studies of tables need: boosting and linear models as methods, and their tuning."""
