"""Behind `aegis.redis.cache`, whose docstring has the map; `core` joins the parts."""
