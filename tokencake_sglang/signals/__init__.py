"""Messages about agents: the front doors that receive them and the clients that send them. No sglang."""
