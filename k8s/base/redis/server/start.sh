# The password goes into a file in memory: process lists would show an argument.
umask 077
printf 'requirepass "%s"\n' "$REDIS_PASSWORD" > /run/redis/password.conf
exec redis-server /etc/redis/redis.conf
