"""What goes on now: one picture of coordinator and host, on a terminal and on a page."""
