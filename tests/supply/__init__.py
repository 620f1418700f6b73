"""What the project depends on: licences, and the lowest versions that are said to do."""
