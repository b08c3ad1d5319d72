"""Text and tokens: tokenizer, decoding, sampling, where a text ends."""
