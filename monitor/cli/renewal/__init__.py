"""`layerwatch profile renew`: a candidate from the images of calm times, checked against what people vouched for."""
