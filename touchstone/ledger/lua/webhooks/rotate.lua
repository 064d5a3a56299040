-- tenant, endpoint or '', new secret, ms for which the previous one stays valid, most secrets. False where there is no
-- such endpoint, else the time until which both are valid.
local tenant, id, secret, overlap, max_secrets = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
if id ~= '' and redis.call('HEXISTS', webhooks_key(tenant), id) == 0 then return false end

local until_when = now() + overlap
local kept = {{secret = secret}}
for _, old in ipairs(cjson.decode(redis.call('HGET', secrets_key(tenant), id) or '[]')) do
  old.good_until = old.good_until or until_when
  if old.secret ~= secret and old.good_until > now() and #kept < max_secrets then kept[#kept + 1] = old end
end
redis.call('HSET', secrets_key(tenant), id, cjson.encode(kept))
return until_when
