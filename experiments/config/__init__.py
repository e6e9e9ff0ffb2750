"""Configuration: composed from its groups, checked, and turned into parts."""
