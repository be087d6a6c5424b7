"""What must hold before a model may leave."""
