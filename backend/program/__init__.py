"""program.json: written, read strictly, held together."""
