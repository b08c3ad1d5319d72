"""The output folder: names, appearance as a whole, files that are as the compile left them."""
