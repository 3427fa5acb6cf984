"""Feature values as pure functions, and the schema that models and stores agree on."""
