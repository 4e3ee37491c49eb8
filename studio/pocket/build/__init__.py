"""Makes the pocket base from nothing: pictures, tokenizer, autoencoder, denoiser and text encoder.

`python -m studio.pocket.build --minutes 90 --out pocket-build`; with `--resume` it goes on where it was
ended. The modules here load torch: nothing else of the studio imports them.
"""
