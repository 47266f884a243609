require 'net/http'

r = Net::HTTP.get_response(URI(ARGV[0]))
r.value # raises unless 2xx
puts r.body
