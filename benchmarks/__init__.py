"""What the speed claims are measured with; nothing else of the project imports this room."""
