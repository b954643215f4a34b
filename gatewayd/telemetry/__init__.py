"""What operators see. It reads ended exchanges; nothing on a request's path imports it."""
