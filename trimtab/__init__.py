"""What the operator touches: the commands, the foreground supervisor, the doctor, the demonstration."""
