"""How the stem models are made, measured and released; nothing a user runs imports this."""
