"""What every room stands on: configuration, errors, plan and apply, the doors to processes and nodes."""
