"""The graph as a file and as a whole: opened, checked, in plain form."""
