"""Games of many drivers and how they learn to play them: MAPPO, MASAC, TrafficGamer and CCE-MASAC."""
