"""What every part of Cartwheel agrees on: names, columns, metrics, locations and settings. Imports no other part."""
