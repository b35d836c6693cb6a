"""Who goes next: pure policies for the engine and the link."""
