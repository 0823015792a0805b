-- One step about one Idempotency-Key. Atomic, like every script; a replica that is not heard of any more can take no second one.
--
-- KEYS: the key's hash, the account's members (hash, see `call.lua`).
-- ARGV: what to do, replica, life, number of the create, SHA-256 of its body, lease in us, how long it is kept in ms; then the answer, where there
-- is one: status, headers, body, 1 if it started a job.
-- States: entered (it waits for its turn), sending (it may have been sent), unknown (nobody will know), said; free (given back, and kept for a
-- minute against calls of its create that come late).
local key, members = KEYS[1], KEYS[2]
local op, id, life, n, asked, lease, kept = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7]
local owner = id .. ' ' .. life .. ' ' .. n

local function get(field) return redis.call('HGET', key, field) end
local state, holder = get('state'), get('owner')
if state == 'free' then
    if holder == owner and (op == 'enter' or op == 'begin') then return { 'runs' } end
    state = nil
end

-- For ARGV[7] from now on.
local function put(to)
    redis.call('HSET', key, 'state', to, 'owner', owner, 'asked', asked)
    redis.call('PEXPIRE', key, kept)
    return { 'yours' }
end

-- Whether the replica that has it still calls.
local function alive()
    local of, its_life = string.match(holder, '^(%S+) (%S+) ')
    local member = redis.call('HGET', members, of)
    if not member then return false end
    local words = {}
    for word in string.gmatch(member, '%S+') do words[#words + 1] = word end
    local clock = redis.call('TIME')
    local now = clock[1] * 1000000 + clock[2]
    return words[1] == its_life and now - tonumber(words[4]) <= 3 * lease
end

if op == 'enter' then
    if not state then return put('entered') end
    if get('asked') ~= asked then return { 'other' } end
    if state == 'said' then return { 'said', get('status'), get('headers'), get('body'), get('accepted') } end
    if state == 'unknown' then return { 'unknown' } end
    if holder == owner then return { 'yours' } end
    if alive() then return { 'runs' } end
    if state == 'entered' then return put('entered') end
    return { 'unknown' }
end

if op == 'begin' then
    -- Not there any more: all was lost, and whoever had an answer has told it again since.
    if not state or (holder == owner and (state == 'entered' or state == 'sending')) then return put('sending') end
    return { 'runs' }
end

if op == 'forget' then
    if not state or (holder == owner and state ~= 'said') then
        put('free')
        redis.call('PEXPIRE', key, 60000)
    end
    return { 'done' }
end

-- What is told late or again changes no answer. Who has only entered has not sent; an earlier process of this replica told what it knew.
local own = not state or state == 'entered' or string.sub(holder, 1, #id + 1) == id .. ' '
if op == 'sending' or op == 'unknown' then
    if own and state ~= 'said' then put(op) end
    return { 'done' }
end
if (own or state == 'unknown') and state ~= 'said' then
    put('said')
    redis.call('HSET', key, 'status', ARGV[8], 'headers', ARGV[9], 'body', ARGV[10], 'accepted', ARGV[11])
end
return { 'done' }
