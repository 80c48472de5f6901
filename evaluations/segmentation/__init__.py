"""What every pixel shows: images with a class per pixel, and how well features tell them apart."""
