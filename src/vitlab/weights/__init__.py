"""Other people's weights and ours: read, mapped in both directions, adapted, loaded with a report."""
