"""How good a set of images is: FID, sFID, Inception score, precision, recall, KID."""
