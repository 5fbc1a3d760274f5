"""What makes the evidence: a study trains many models through the recipes, a report reads the lines that it leaves."""
