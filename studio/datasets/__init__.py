"""Pictures in: safe decoding, captions, data sets."""
