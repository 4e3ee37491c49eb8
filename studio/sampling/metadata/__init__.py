"""What a picture says about how it was made: ours and A1111's text written, those of five programs read."""
