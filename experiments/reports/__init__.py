"""Reports: whatever a person looks at, with the templates beside the code that fills them."""
