"""Whether virtual time gives the times that were measured on real machines."""
