"""What people read: plain text, charts and one self-contained HTML file."""
