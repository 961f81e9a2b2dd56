"""What a network is, to netgrow: its operations, and the layout of every tensor axis."""
