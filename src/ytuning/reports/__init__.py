"""What people read: tables on the terminal and HTML pages."""
