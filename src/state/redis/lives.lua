-- What the scripts that only read an account (see `call.lua`) ask of it. Put before each of them.

-- An error where what is kept is a newer version's, which this script would misread.
local VERSION = 1
local function newer_than_this(account)
    if tonumber(redis.call('HGET', account, 'version') or '0') > VERSION then
        return redis.error_reply('NEWER a newer version of sluicegate keeps this account')
    end
end

-- Who is about, by the age of the account: no step of the server's clock adds to it. A replica whose row is missing, or of another life, may
-- not have come back yet after a loss: until the account has settled, it counts as one that is about.
local function census(account, members, lease)
    local function stored(name) return tonumber(redis.call('HGET', account, name) or '0') end
    local clock = redis.call('TIME')
    local now = clock[1] * 1000000 + clock[2]
    local last = stored('last')
    local age = stored('age') + math.max(math.min(now - last, lease), 0)
    local settled = last > 0 and now >= stored('full') and stored('roll') == 0
    -- How long ago its last call was, and the last whose answer is known to have arrived, in microseconds. Nothing: it is gone for good, or its
    -- life is another.
    local function since(id, life)
        local words = {}
        for word in string.gmatch(redis.call('HGET', members, id) or '', '%S+') do words[#words + 1] = word end
        local same = words[1] and (not life or words[1] == life)
        if same then return age - tonumber(words[5]), age - tonumber(words[6]) end
        if not settled then return 0, 0 end
    end
    return since, settled
end

