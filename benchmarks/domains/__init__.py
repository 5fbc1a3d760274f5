"""What only studies of domains need: the rules by which DomainBed chooses a checkpoint."""
