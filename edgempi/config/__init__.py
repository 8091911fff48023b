"""What a person configures: the schema, and the composing, validating and freezing of it."""
