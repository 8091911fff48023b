"""The devices and what joins them, as data, and the command that starts ranks on them."""
