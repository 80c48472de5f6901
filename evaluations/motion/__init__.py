"""How good generated human motion is: R-precision, FID, matching score and diversity."""
