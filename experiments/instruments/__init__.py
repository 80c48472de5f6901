"""Real small audio: instruments rendered in MTG-Jamendo's layout, and a small VAE of them."""
