"""Random faults on real parts for as long as one likes."""
