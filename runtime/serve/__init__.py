"""A server that answers as OpenAI's does, from a compiled model."""
