"""Where and how Cartwheel runs. Starts the other parts by command line; imports only `contracts`."""
