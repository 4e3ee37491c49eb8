"""Makes the pocket bases from nothing: pictures, tokenizers, autoencoders, denoisers and text encoders.

`python -m studio.pocket.build --minutes 90 --out pocket-build` on a CPU, with `--together --processes 16` on
a GPU; with `--resume` it goes on where it was ended. Modules here load torch: nothing else of the studio
imports them.
"""
