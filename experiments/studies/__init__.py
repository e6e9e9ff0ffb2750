"""Studies: many runs under one recipe, kept as records, and what they say of published claims."""
