"""What operators see. Reads finished exchanges; nothing on a request's path imports it."""
