"""From finished runs to isoFLOP minima and a scaling law with intervals. Knows numpy, scipy and matplotlib; nothing of torch."""
