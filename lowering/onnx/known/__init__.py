"""What is known of the graph before any token: constants, shapes, fields of positions, masks."""
