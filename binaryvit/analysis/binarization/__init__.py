"""The figures of `notebooks/binarization.ipynb`, in whose cells a binary transformer is built by hand."""
