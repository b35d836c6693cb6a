"""Who hosts what: signed records in a DHT, and the directory that reads them."""
