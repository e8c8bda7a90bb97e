"""Looking into stored runs: one package a notebook, beside them what these share. Nothing is trained."""
